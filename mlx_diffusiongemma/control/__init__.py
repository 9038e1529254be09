"""What a canvas may hold: budget, guards, drafts, grammars, templates."""
