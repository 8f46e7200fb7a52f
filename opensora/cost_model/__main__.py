from opensora.config.command_line import run_main
from opensora.cost_model.command import main

if __name__ == "__main__":
    run_main(main)
