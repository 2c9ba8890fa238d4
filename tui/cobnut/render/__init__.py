"""From the document to lines of the screen."""
