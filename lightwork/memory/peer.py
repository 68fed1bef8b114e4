"""A neighbour that keeps layers: `python -m lightwork.memory.peer CONTROL LINK`.

Descriptors: of the pipe to the process that started it, which says first what to keep (`PeerOrder`), and of
the socket on which that asks for layers by number and gets their bytes. It ends with that process.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from lightwork.memory.peers import PeerOrder, layer_tensors
from lightwork.models.checkpoint import open_checkpoint
from lightwork.models.spec import read_spec
from lightwork.runtime.child import outlive_signals


def main() -> None:
    outlive_signals()
    pipe, link = Connection(int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    order: PeerOrder = pipe.recv()
    torch.set_num_threads(1)
    spec, checkpoint = read_spec(order.path), open_checkpoint(order.path)
    kept, shapes = {}, {}
    for layer in order.layers:
        tensors = layer_tensors(spec, layer, checkpoint.get)
        kept[layer] = torch.cat([tensor.reshape(-1) for _, tensor in tensors]).numpy()
        shapes[layer] = [(name, tuple(tensor.shape)) for name, tensor in tensors]
    pipe.send([("ready", shapes)])
    with suppress(ConnectionError):
        while asked := link.recv(8, socket.MSG_WAITALL):
            link.sendall(kept[int.from_bytes(asked, "little")].data)


if __name__ == "__main__":
    main()
