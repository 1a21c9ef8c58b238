"""What people look at: tables, figures, report.html."""
