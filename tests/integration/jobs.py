"""Jobs as anybody writes them, small ones."""

TRAINING = """
    import torch
    from torch import nn

    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(5, 8)

    @torch.compile
    def loss_of(batch):
        return model(batch).square().mean()

    losses = []
    for _ in range(2):
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item().hex())
    report(losses=losses)
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
"""
"""Two graphs, forward and backward, with two compiled libraries each."""

CUBE = """
    import torch

    x = torch.arange(40.0)
    torch.testing.assert_close(torch.compile(lambda x: x ** 3)(x), x ** 3)
    report()
"""
"""One graph, one library."""
