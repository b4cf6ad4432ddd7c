"""Words of captions: which say something of what is seen, and which are colours."""

from __future__ import annotations

import re

WORD = r"[^\W\d_]+"

COLOURS = frozenset(
    re.findall(
        WORD,
        "red orange yellow green blue purple pink brown black white grey gray golden silver beige turquoise violet tan",
    )
)

STOP_WORDS = frozenset(
    re.findall(
        WORD,
        """a about above across after against all along also am among an and another any are around as at away
    back be because been before behind being below beside between both but by can could do does down
    during each either few for from front had has have he her here him his how i if in inside into is it
    its itself just large left like little lot many may middle more most much my near next no not of off on one
    onto or other others our out outside over own right s several she showing shown shows small so some
    such t than that the their them then there these they this those through to together top toward
    towards two under up upon very was we were what when where which while who whose will with within
    without would you your""",
    )
)
