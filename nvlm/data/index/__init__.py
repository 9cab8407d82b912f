"""All samples of a source measured once: byte ranges, image sizes, token counts as mapped files."""
