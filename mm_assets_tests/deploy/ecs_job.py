"""A job of two steps, one of which wants a GPU; each says in which process it was."""

import os

import dagster as dg

from mm_assets.assets.compute import Compute
from mm_assets.resources.engine import step_executor


def job() -> dg.JobDefinition:
    """Both steps, on the engine of the environment."""

    @dg.asset(op_tags=Compute(cpu=2, memory_gib=8).op_tags())
    def plain() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"process": os.getpid()})

    @dg.asset(op_tags=Compute(gpu=1, cpu=4, memory_gib=16).op_tags(), deps=[plain])
    def quick() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"process": os.getpid()})

    both = dg.define_asset_job("both")
    definitions = dg.Definitions([plain, quick], jobs=[both], executor=step_executor())
    return definitions.resolve_job_def("both")
