"""Who runs the planned cells: the sweep, its jobs and its workers."""
