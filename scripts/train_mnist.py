"""Train on MNIST with hand-written backpropagation: python scripts/train_mnist.py --help"""

import sys

from manual_backprop.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
