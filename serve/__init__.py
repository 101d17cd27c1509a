"""talkhead as a service: conversations with an avatar over one WebSocket, and videos made by jobs over HTTP.

The interface process (`app`) answers requests and holds no torch; live workers (`live_worker`) hold the avatars and draw; job
workers make videos. See docs/live.md for the protocol and docs/serve.md for the interface.
"""
