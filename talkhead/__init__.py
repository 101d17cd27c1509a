"""The stages of talkhead put together. Only arrays pass between them; `cli` calls what is here."""

import talkhead_guard

talkhead_guard.check(*talkhead_guard.PACKAGES[:-1])
