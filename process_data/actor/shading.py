"""Shading of the synthetic head, averaged over the samples of a pixel, and compositing of the layers from background to hand."""

import numba
import numpy as np

from process_data.actor.head_mesh import EYE, MOUTH, NECK
from process_data.actor.mesh_raster import perspective_weights
from process_data.actor.scene import FILL_LIGHT, KEY_LIGHT, PLATE_MARGIN, PLATE_SCALE
from process_data.actor.texture import linear_to_srgb, srgb_to_linear
from process_data.actor.tubes import BEHIND, HAND, tube_place
from shared.compiled import cached_njit

_KEY = KEY_LIGHT / np.linalg.norm(KEY_LIGHT)
_FILL = FILL_LIGHT / np.linalg.norm(FILL_LIGHT)
_HALF = (_KEY + [0, 0, -1]) / np.linalg.norm(_KEY + [0, 0, -1])  # half way between light and camera (Blinn)
_TO_SRGB = np.round(255 * linear_to_srgb(np.linspace(0, 1, 4096))).astype(np.uint8)
_TO_LINEAR = srgb_to_linear(np.arange(256) / 255).astype(np.float32)
_WRAP = np.array([0.42, 0.26, 0.20])  # wrap lighting of skin by channel: light reaches beyond the terminator, red furthest
_EYE, _MOUTH, _NECK = EYE, MOUTH, NECK
_BEHIND, _HAND = BEHIND, HAND


@cached_njit()
def _bilinear(image, x, y, out):
    """image (H, W, C) at x, y (pixel centres at integer + 0.5), edges extended."""
    height, width = image.shape[0], image.shape[1]
    x, y = min(max(x - 0.5, 0.0), width - 1.001), min(max(y - 0.5, 0.0), height - 1.001)
    c, r = int(x), int(y)
    fx, fy = x - c, y - r
    for k in range(out.shape[0]):
        top = image[r, c, k] * (1 - fx) + image[r, c + 1, k] * fx
        bottom = image[r + 1, c, k] * (1 - fx) + image[r + 1, c + 1, k] * fx
        out[k] = top * (1 - fy) + bottom * fy


@cached_njit()
def _shade(a, b, c, wa, wb, wc, normals, uv, occlusion, gloss, material, atlas, color):
    """Linear colour of one surface point: wrapped diffuse key and fill light, ambient from above, soft highlight."""
    nx = wa * normals[a, 0] + wb * normals[b, 0] + wc * normals[c, 0]
    ny = wa * normals[a, 1] + wb * normals[b, 1] + wc * normals[c, 1]
    nz = wa * normals[a, 2] + wb * normals[b, 2] + wc * normals[c, 2]
    length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
    nx, ny, nz = nx / length, ny / length, nz / length
    u = wa * uv[a, 0] + wb * uv[b, 0] + wc * uv[c, 0]
    v = wa * uv[a, 1] + wb * uv[b, 1] + wc * uv[c, 1]
    ambient = wa * occlusion[a] + wb * occlusion[b] + wc * occlusion[c]
    shine = wa * gloss[a] + wb * gloss[b] + wc * gloss[c]
    _bilinear(atlas, u * atlas.shape[1], v * atlas.shape[0], color)
    key = nx * _KEY[0] + ny * _KEY[1] + nz * _KEY[2]
    fill = max(0.0, nx * _FILL[0] + ny * _FILL[1] + nz * _FILL[2])
    half = max(0.0, nx * _HALF[0] + ny * _HALF[1] + nz * _HALF[2])
    sky = 0.20 - 0.07 * ny
    rim = 0.10 * (1.0 - max(0.0, -nz)) ** 3
    if material == _EYE:
        glint = 1.6 * half ** 350 if shine > 0.9 else 0.0
        spread = 0.0
    elif material == _MOUTH:
        glint = 0.35 * shine * half ** 40 * ambient
        spread = 0.0
    else:
        glint = 0.17 * shine * (half ** 14 + 0.8 * half ** 60) * ambient
        spread = 1.0
    for k in range(3):
        wrap = spread * _WRAP[k] + 0.08
        light = max(0.0, (key + wrap) / (1.0 + wrap))
        color[k] = color[k] * ambient * (0.86 * light + 0.24 * fill + sky + rim) + glint


@cached_njit()
def _shade_tube(s, x, y, screen, radius, segments, light, solid, gloss, color):
    """Linear colour of a tube at the sample (x, y): hair is lit by vertex, a solid tube by the normal of its round surface."""
    a, b = segments[s, 0], segments[s, 1]
    along, ex, ey, wide = tube_place(screen, radius, a, b, x, y)
    for k in range(3):
        color[k] = light[a, k] + along * (light[b, k] - light[a, k])
    if not solid[a]:
        return
    nx, ny = ex / wide, ey / wide
    nz = -np.sqrt(max(0.0, 1.0 - nx * nx - ny * ny))
    key = nx * _KEY[0] + ny * _KEY[1] + nz * _KEY[2]
    fill = max(0.0, nx * _FILL[0] + ny * _FILL[1] + nz * _FILL[2])
    half = max(0.0, nx * _HALF[0] + ny * _HALF[1] + nz * _HALF[2])
    for k in range(3):
        wrapped = max(0.0, (key + _WRAP[k]) / (1.0 + _WRAP[k]))
        color[k] = color[k] * (0.86 * wrapped + 0.24 * fill + 0.20 - 0.07 * ny) + 0.5 * gloss[a] * half ** 40


@cached_njit(parallel=True)
def compose(ids, screen, depth, triangles, normals, uv, occlusion, gloss, material, label_of_material, atlas,
            tube_screen, tube_radius, tube_segments, tube_layer, tube_light, tube_solid, tube_gloss,
            plate, torso, gain, background, samples, picture, labels, alpha, head_alpha, person, head_color):
    """Fill the arrays from picture (H, W, 3) uint8 sRGB and labels (H, W) uint8 on, from samples² visibility samples a pixel.

    Layers from the back: background, hair behind the shoulders, neck, torso plate, head with its other hair, hand. ids: of
    triangles, then of tube segments. torso: (dx, dy, angle, scale) of the torso plate about the picture's centre; gain: of all
    light but the background's. A pixel gets the label of what covers most of it. alpha, head_alpha (H, W) uint8: shares of the
    pixel in which the person, the head with its hair can be seen; person, head_color (H, W, 3) float32: their linear light in
    the pixel.
    """
    height, width = picture.shape[0], picture.shape[1]
    dx, dy, angle, scale = torso[0], torso[1], torso[2], torso[3]
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    share = 1.0 / (samples * samples)
    for row in numba.prange(height):
        color, head_light, neck_light, back_light, hand_light = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
        cloth = np.zeros(4)
        cover = np.zeros(5)
        for column in range(width):
            head_light[:] = 0.0
            neck_light[:] = 0.0
            back_light[:] = 0.0
            hand_light[:] = 0.0
            cover[:] = 0.0
            back, hand = 0.0, 0.0
            for i in range(samples):
                for j in range(samples):
                    r, q = row * samples + i, column * samples + j
                    f = ids[r, q]
                    if f < 0:
                        continue
                    if f >= triangles.shape[0]:
                        s = f - triangles.shape[0]
                        _shade_tube(s, q + 0.5, r + 0.5, tube_screen, tube_radius, tube_segments, tube_light, tube_solid,
                                    tube_gloss, color)
                        layer = head_light
                        if tube_layer[s] == _BEHIND:
                            back += share
                            layer = back_light
                        elif tube_layer[s] == _HAND:
                            hand += share
                            layer = hand_light
                        else:
                            cover[3] += share
                        for k in range(3):
                            layer[k] += color[k] * share
                        continue
                    a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
                    wa, wb, wc = perspective_weights(screen, depth, a, b, c, q + 0.5, r + 0.5)
                    _shade(a, b, c, wa, wb, wc, normals, uv, occlusion, gloss, material[f], atlas, color)
                    cover[label_of_material[material[f]]] += share
                    layer = neck_light if material[f] == _NECK else head_light
                    for k in range(3):
                        layer[k] += color[k] * share
            px, py = column + 0.5 - dx - width / 2, row + 0.5 - dy - height / 2
            x = cosine * px + sine * py + width / 2
            y = -sine * px + cosine * py + height / 2
            _bilinear(plate, (x + PLATE_MARGIN * width) * PLATE_SCALE, (y + PLATE_MARGIN * height) * PLATE_SCALE, cloth)
            head = cover[3] + cover[4]
            if head + hand + back + cover[2] + cloth[3] == 0.0:
                picture[row, column] = background[row, column]
                labels[row, column] = 0
                alpha[row, column] = 0
                head_alpha[row, column] = 0
                person[row, column] = 0.0
                head_color[row, column] = 0.0
                continue
            neck = cover[2]
            behind = max(1.0 - head - hand, 1e-9)  # the share of the pixel that hand and head leave free
            neck_share = min(1.0, neck / behind)
            back_share = min(1.0 - neck_share, back / behind)
            seen_back = behind * (1.0 - cloth[3]) * back_share
            cover[1] = behind * cloth[3]
            cover[2] = behind * (1.0 - cloth[3]) * neck_share
            cover[0] = behind * (1.0 - cloth[3]) * (1.0 - neck_share - back_share)
            for k in range(3):
                own = head_light[k]
                if back > 0.0:
                    own += seen_back * back_light[k] / back
                body = own + hand_light[k] + behind * cloth[k]
                light = gain * body + cover[0] * _TO_LINEAR[background[row, column, k]]
                if neck > 0.0:
                    light += gain * cover[2] * neck_light[k] / neck
                    body += cover[2] * neck_light[k] / neck
                picture[row, column, k] = _TO_SRGB[int(4095 * min(max(light, 0.0), 1.0))]
                person[row, column, k] = gain * body
                head_color[row, column, k] = gain * own
            alpha[row, column] = int(255 * (1.0 - cover[0]) + 0.5)
            head_alpha[row, column] = int(255 * min(head + seen_back, 1.0) + 0.5)
            cover[1] += hand
            cover[3] += seen_back
            best = 0
            for k in range(1, 5):
                if cover[k] > cover[best]:
                    best = k
            labels[row, column] = best
