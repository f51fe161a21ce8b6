"""The contract of a drop-in layer: the rows of the README's table, in its order.

A test names its row with ``@pytest.mark.row("AMP")``. It compares with the `torch.nn` original on the same weights,
and runs twice: with our backward, and with its canary, when it has to fail (`conftest.py`).
"""

ROWS = {
    "convert": "`mb.convert(model)` on an existing model, `mb.revert(model)`",
    "costs": "the costs beside `MSELoss`, `BCELoss`, `BCEWithLogitsLoss`",
    "AMP": "`torch.autocast`, `GradScaler`",
    "torch.compile": "`fullgraph=True`, dynamic batch, a train step, no recompilation",
    "torch.func": "`grad`, `vjp`, `jvp`, `vmap`, `jacrev`, `jacfwd`, `hessian`, `functional_call`, ensembles",
    "forward mode": "`jvp` of every Function, together with `torch.compile` of the same layer",
    "higher order": "`gradgradcheck`, gradient penalty, Hessian-vector products",
    "torch.export": "exports and runs forward",
    "checkpointing, offload": "`torch.utils.checkpoint`, `save_on_cpu`, saved-tensor hooks",
    "DDP": "`DistributedDataParallel`, 2 processes",
    "FSDP2": "`fully_shard`, 2 processes, `torch.distributed.checkpoint`",
    "tensor parallel": "`parallelize_module`, Colwise and Rowwise",
    "pipeline": "`torch.distributed.pipelining`, 2 stages",
    "optimizers": "every optimizer of `torch.optim`, `parametrize`, gradient clipping",
    "serialisation": "`state_dict`, pickle, deepcopy, `torch.save`, safetensors",
    "devices, dtypes": "`meta`, lazy layers, `.to`, `.half()`, the default dtype",
    "other libraries": "Opacus, Lightning, TransformerEncoder, torchvision",
}
