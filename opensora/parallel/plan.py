"""The published path of the cost model's command: python -m opensora.parallel.plan"""

from opensora.config.command_line import run_main
from opensora.cost_model import main

if __name__ == "__main__":
    run_main(main)
