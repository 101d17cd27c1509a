"""The 68 iBUG points as fixed vertices of MediaPipe's 478-point face mesh."""

import numpy as np

# jaw vertices lie on the face itself, so a turned head does not move them
MESH68 = np.array(
    [127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356]
    + [70, 63, 105, 66, 107, 336, 296, 334, 293, 300]
    + [168, 197, 5, 4, 98, 97, 2, 326, 327]
    + [33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380]
    + [61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181]
    + [78, 82, 13, 312, 308, 317, 14, 87]
)

# vertices that speech and blinking hardly move: forehead, temples, bridge and sides of the nose, eye corners
RIGID = np.array(
    [10, 338, 297, 332, 284, 251, 109, 67, 103, 54, 21, 127, 356, 162, 389, 151, 9, 8, 168, 6, 197, 195, 5, 4, 1, 33, 133,
     362, 263, 130, 359, 243, 463, 122, 351, 196, 419, 174, 399, 188, 412, 245, 465, 227, 447, 234, 454, 116, 345, 48,
     278, 98, 327, 131, 360]
)
# how far each of them is trusted: the silhouette's vertices are less certain than the eye corners and the nose
RIGID_WEIGHT = np.where(np.isin(RIGID, [10, 338, 297, 332, 284, 251, 109, 67, 103, 54, 21, 127, 356, 162, 389, 227, 447,
                                        234, 454]), 0.4, 1.0)
