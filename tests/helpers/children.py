"""Processes that a test starts."""

import multiprocessing
import socket
import sys

import torch

# Children of a process that uses a GPU cannot be forked.
CHILDREN = multiprocessing.get_context("fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
