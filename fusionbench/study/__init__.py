"""What is asked: studies, contrasts, ablation designs, the plan of cells, the data."""
