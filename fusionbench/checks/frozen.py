"""What is shared and frozen stays as it is."""

import torch

from fusionbench.checks.gradients import loss_of
from fusionbench.checks.outcome import CheckFailed
from fusionbench.checks.subject import SHAPE, Subject, run_on
from fusionbench.checks.suite import check
from fusionbench.checks.toy import ToyEncoder, draw


@check
def frozen(subject: Subject) -> None:
    """A training step changes neither the encoder nor the hidden states it was given."""
    encoder = ToyEncoder(SHAPE)
    method = subject.jittered()
    tokens, query = draw(SHAPE)
    states = encoder.states_from(tokens)
    given = states.clone(), query.clone()
    weights = {name: values.clone() for name, values in encoder.state_dict().items()}
    loss = loss_of(run_on(method, states, query, encoder))
    if loss.requires_grad:
        torch.autograd.backward(loss)
    if not (torch.equal(states, given[0]) and torch.equal(query, given[1])):
        raise CheckFailed("writes into the hidden states or the query: others share them")
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad or parameter.grad is not None:
            raise CheckFailed(f"the encoder's {name} gets a gradient")
        if not torch.equal(parameter, weights[name]):
            raise CheckFailed(f"the encoder's {name} has changed")
    if encoder.training:
        raise CheckFailed("the encoder was put into training mode")
