"""A linked channel, in either role: bytes both ways, moving in a live migration, closing."""

from spicebridge.channel.channel import CLOSE_TIMEOUT, SETTLE_LIMIT, SETTLE_TIME, Channel
from spicebridge.channel.flow import ChannelClosedError

__all__ = ["CLOSE_TIMEOUT", "SETTLE_LIMIT", "SETTLE_TIME", "Channel", "ChannelClosedError"]
