"""Frame numbers and time stamps from a video's packets, for random access without decoding the whole file."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import NamedTuple, Optional, Union

import av
import numpy as np

# Containers with reliable time stamps and keyframe flags. Others are decoded from the start.
INDEXED_CONTAINERS = {"mov", "matroska"}
# Codecs for which, as for intra-only codecs, every packet of an intact file gives one frame (for VP9 see `is_shown`).
# MPEG-4 and VP8 have packets without a frame.
INDEXED_CODECS = {"h264", "hevc", "av1", "vp9"}


class Keyframe(NamedTuple):
    number: int  # frame number in display order
    pts: int  # presentation time stamp in the stream's time base
    dts: int  # decoding time stamp


class PacketIndex:
    """The frames of a stream according to its packets, in display order.

    Args:
        times: (N,) int64, presentation time stamps, strictly increasing.
        keyframes: (K, 2) int64, presentation and decoding time stamps of the keyframes. A keyframe may precede the
            first frame (edit lists).
    """

    def __init__(self, times: np.ndarray, keyframes: np.ndarray):
        self.times = times
        self._keyframes = keyframes[np.argsort(keyframes[:, 0])]

    def __len__(self) -> int:
        return len(self.times)

    @property
    def has_negative_times(self) -> bool:
        return bool(self._keyframes[0, 0] < 0)

    def keyframe_before(self, number: int) -> Keyframe:
        """The last keyframe displayed at or before frame `number`."""
        row = max(0, int(np.searchsorted(self._keyframes[:, 0], self.times[number], "right")) - 1)
        pts, dts = map(int, self._keyframes[row])
        return Keyframe(int(np.searchsorted(self.times, pts)), pts, dts)

    def frame_of_keyframe(self, pts: Optional[int]) -> Optional[int]:
        """The frame number of the keyframe with this presentation time stamp; None if there is no such keyframe."""
        if pts is None or pts not in self._keyframes[:, 0]:
            return None
        return int(np.searchsorted(self.times, pts))


def index_packets(codec: av.Codec, container_format: str, packets: Iterable[av.Packet]) -> Optional[PacketIndex]:
    """Indexes all packets of a stream; None if the packets do not determine the frames.

    This is the case for containers and codecs other than those above, for missing or repeated time stamps, and if the
    first packet is not the first frame in display order (leading pictures of a cut stream may not be decodable).
    """
    if not (
        INDEXED_CONTAINERS.intersection(container_format.split(","))
        and (codec.canonical_name in INDEXED_CODECS or codec.intra_only)
    ):
        return None
    times, keyframes = array("q"), array("q")
    for packet in packets:
        if packet.size == 0:  # the flush packet at the end
            continue
        if packet.pts is None or packet.is_corrupt or not (keyframes or packet.is_keyframe):
            return None
        if packet.is_keyframe:
            keyframes.extend((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if not packet.is_discard and (codec.canonical_name != "vp9" or is_shown(packet)):
            if packet.pts < keyframes[0]:
                return None
            times.append(packet.pts)
    sorted_times = np.sort(np.array(times, np.int64))
    if len(sorted_times) == 0 or (np.diff(sorted_times) == 0).any():
        return None
    return PacketIndex(sorted_times, np.array(keyframes, np.int64).reshape(-1, 2))


def is_shown(packet: Union[av.Packet, bytes]) -> bool:
    """Whether a VP9 packet gives a frame: it is a superframe, or its first byte sets show_existing_frame or show_frame.

    Bit positions: VP9 bitstream specification, 6.2 (only profile 3 has a reserved bit after the profile) and annex B.
    """
    data = memoryview(packet)
    first, last = data[0], data[-1]
    if last & 0xE0 == 0xC0:
        return True
    shift = 1 if first & 0x30 == 0x30 else 0
    return bool(first & (0x08 >> shift) or first & (0x02 >> shift))
