"""The notebook as data: cells, their outputs, and how messages change them. No Textual."""
