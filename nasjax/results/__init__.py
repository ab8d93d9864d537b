"""What a run leaves: records, metrics, analysis, plots, report, the exported child."""
