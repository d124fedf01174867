"""`python -m leafe.distill JOB.json`: one training, as a launcher starts it (`_job`)."""

import sys

from leafe.distill._job import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
