"""What people look at: configurations, models, data and previews as terminal tables and pages."""
