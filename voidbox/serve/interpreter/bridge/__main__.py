"""python3 -m bridge PORT"""

import sys

from .server import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
