"""Where documents come from. Every source loads as a `datasets.Dataset` with one column, `text`, one row a document."""

from packmamba.data.sources.base import Source
from packmamba.data.sources.files import Files
from packmamba.data.sources.folder import DatasetFolder
from packmamba.data.sources.hub import HubDataset
from packmamba.data.sources.python_docs import PythonDocs

__all__ = ["DatasetFolder", "Files", "HubDataset", "PythonDocs", "Source"]
