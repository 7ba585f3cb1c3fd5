"""From the files of a run to one page that tells it: `priml.report.page.write_report(run_dir)`."""
