"""What a command that only tells of a campaign needs of its pool is there at once."""

import subprocess
import sys


def test_pool_table_and_headers_of_images_are_read_without_torch():
    modules = (
        *("connectors.image_folder.index", "connectors.images.shown", "connectors.images.ranges"),
        *("pipeline.names", "pipeline.pool.group_rules", "pipeline.pool.merge", "pipeline.pool.notes"),
        *("pipeline.pool.audit", "pipeline.evaluation.stopping", "pipeline.selection.settings"),
    )
    code = f"import sys, {', '.join(modules)}; print([name for name in sys.modules if name.startswith('torch')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
