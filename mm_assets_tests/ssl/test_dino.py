"""DINO's objective against its formula, its centre, its teacher and its schedules."""

import copy
import math

import pytest
import torch
from torch import nn

from mm_assets.ssl.dino import Head, Loss, follow_student
from mm_assets.ssl.schedules import Cosine


def test_loss_is_the_cross_entropy_of_pairs_of_different_crops() -> None:
    torch.manual_seed(0)
    student, teacher = list(torch.randn(4, 3, 7)), list(torch.randn(2, 3, 7))
    made = Loss(7)(student, teacher, 0.05)
    expected = [
        nn.functional.cross_entropy(student[v] / 0.1, (teacher[t] / 0.05).softmax(-1))
        for t in range(2)
        for v in range(4)
        if t != v
    ]
    torch.testing.assert_close(made.loss, torch.stack(expected).mean())


def test_centre_follows_the_teacher_and_is_taken_from_it() -> None:
    loss, outputs = Loss(5, inertia=0.9), [torch.full((2, 5), 3.0)]
    loss.follow(outputs)
    torch.testing.assert_close(loss.centre, torch.full((1, 5), 0.3))
    loss.centre.copy_(torch.tensor([[9.0, 0, 0, 0, 0]]))
    favourite = [torch.tensor([[9.0, 0, 0, 0, 0]])] * 2
    assert float(loss(favourite, favourite, 0.05).entropy) == pytest.approx(math.log(5))


def test_one_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        Loss(5)([torch.zeros(1, 5)], [torch.zeros(1, 5)], 0.05)


def test_teacher_moves_by_its_momentum_and_has_no_gradient() -> None:
    student = Head(4, 6, 8)
    teacher = copy.deepcopy(student).requires_grad_(False)
    before = teacher.prototypes.clone()
    nn.init.ones_(student.prototypes)
    follow_student(teacher, student, 0.75)
    torch.testing.assert_close(teacher.prototypes, before * 0.75 + 0.25)
    assert teacher.prototypes.grad is None


def test_schedule_warms_up_and_ends() -> None:
    schedule = Cosine(start=1.0, end=0.1, steps=101, warmup=20)
    assert schedule.at(10) == pytest.approx(0.5)
    assert schedule.at(20) == pytest.approx(1.0)
    assert schedule.at(60) == pytest.approx(0.55)
    assert schedule.at(100) == schedule.at(500) == pytest.approx(0.1)
