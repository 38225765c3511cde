"""How the parts are chosen, built, lent and freed, and what their configs and memory are."""
