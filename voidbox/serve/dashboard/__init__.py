"""Pages for people: what there is, live, and what one does with it; htmx asks for parts anew."""
