import sys

from packmamba.cli import main

sys.exit(main())
