"""The published path of the cost model's command: python -m opensora.parallel.plan"""

from opensora.cost_model import main
from opensora.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
