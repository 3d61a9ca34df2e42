"""Where documents come from. Every source loads as a `datasets.Dataset` of one row a document.

Stream: the documents of a source, read while training goes on. Shard: a part of a stream that can be read alone, such
as a file. Mixture: several sources, drawn from by weight.
"""

from packmamba.data.sources.base import Source
from packmamba.data.sources.files import Files
from packmamba.data.sources.folder import DatasetFolder
from packmamba.data.sources.hub import HubDataset
from packmamba.data.sources.mixture import Mixture
from packmamba.data.sources.python_docs import PythonDocs
from packmamba.data.sources.synthetic import Copy, RandomLengths, Recall

__all__ = ["Copy", "DatasetFolder", "Files", "HubDataset", "Mixture", "PythonDocs", "RandomLengths", "Recall", "Source"]
