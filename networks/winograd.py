"""3x3 convolution by Winograd's minimal filtering F(4 x 4, 3 x 3): 2.25 products where 9 are written down.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016),
arXiv 1509.09308. Each 4 x 4 tile of the output comes from the 6 x 6 tile of the
input around it: input tiles and weights are transformed, multiplied channel by
channel at each of the 36 places, and transformed back. All transforms are
matrix products over the places.
"""

import math
from functools import lru_cache

import torch

# With 0, 1, -1, 2, -2, the usual choice, float32 rounds twice as coarsely (2.2 to 1.7e-6 / 1.1e-6, direct 0.64e-6).
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
OUT, IN = 4, 6


class TiledConv:
    """Convolution with one weight of strips of rows, and the sum over them of the gradient of that weight.

    Parameters
    ----------
    weight : tensor (O, C, 3, 3)
    """

    def __init__(self, weight):
        outputs, channels = weight.shape[:2]
        self.to_places, to_tiles, of_weights = _transforms(weight.dtype, weight.device)
        self.to_tiles = to_tiles
        self.of_weights = of_weights
        self.weight = (of_weights @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(IN * IN, channels, outputs)
        self.gradient = torch.zeros_like(self.weight)
        self._memory = {}

    def buffer(self, rows, width):
        """Memory for a strip of ``rows`` and its surroundings, (>= rows + 2, >= width + 2, C); the excess is 0."""
        high, wide = _tiles(rows), _tiles(width)
        buffer = self._reused("strip", OUT * high + 2, OUT * wide + 2, self.weight.shape[1])
        buffer[rows + 2 :] = 0
        buffer[:, width + 2 :] = 0
        return buffer

    def forward(self, strip, out):
        """Convolve a filled ``buffer`` into out (rows, W, O)."""
        rows, width, outputs = out.shape
        high, wide = _tiles(rows), _tiles(width)
        products = self._reused("products", IN * IN, high * wide, outputs)
        torch.bmm(self._places(strip), self.weight, out=products)
        tiles = self._reused("result", OUT * OUT, high * wide * outputs)
        torch.mm(self.to_tiles, products.flatten(1), out=tiles)
        _copy_tiles(out, tiles.view(OUT, OUT, high, wide, outputs))

    def backward(self, strip, g):
        """The gradient of a filled ``buffer``, in its memory, from that of the result, g (rows, W, O)."""
        (rows, width, outputs), channels = g.shape, strip.shape[2]
        high, wide = _tiles(rows), _tiles(width)
        if (rows, width) != (OUT * high, OUT * wide):
            whole = self._reused("gradient", OUT * high, OUT * wide, outputs)
            whole[:rows, :width] = g
            whole[rows:] = 0
            whole[:, width:] = 0
            g = whole
        tiles = self._reused("result", OUT, OUT, high, wide, outputs)
        tiles.copy_(g.view(high, OUT, wide, OUT, outputs).permute(1, 3, 0, 2, 4))
        products = self._reused("products", IN * IN, high * wide, outputs)
        torch.mm(self.to_tiles.t(), tiles.view(OUT * OUT, -1), out=products.flatten(1))
        places = self._places(strip)
        self.gradient.baddbmm_(places.transpose(1, 2), products)
        torch.bmm(products, self.weight.transpose(1, 2), out=places)
        tiles = self._reused("tiles", IN, IN, high, wide, channels)
        torch.mm(self.to_places.t(), places.flatten(1), out=tiles.view(IN * IN, -1))
        g_strip = strip
        g_strip[-2:] = 0
        g_strip[:, -2:] = 0
        _copy_tiles(g_strip[:-2, :-2], tiles[:OUT, :OUT])
        # The tiles of the input overlap by two rows and columns.
        for i in (0, 1):
            g_strip[OUT + i :: OUT, :-2] += tiles[OUT + i, :OUT].permute(1, 2, 0, 3).flatten(1, 2)
            g_strip[:-2, OUT + i :: OUT] += tiles[:OUT, OUT + i].permute(1, 0, 2, 3).flatten(0, 1)
            for j in (0, 1):
                g_strip[OUT + i :: OUT, OUT + j :: OUT] += tiles[OUT + i, OUT + j]
        return g_strip

    def weight_gradient(self):
        """The gradient of the weight (O, C, 3, 3)."""
        _, channels, outputs = self.weight.shape
        return (self.of_weights.t() @ self.gradient.flatten(1)).view(3, 3, channels, outputs).permute(3, 2, 0, 1)

    def _places(self, strip):
        """The transformed input tiles, (36, tiles, C)."""
        high, wide, channels = (len(strip) - 2) // OUT, (strip.shape[1] - 2) // OUT, strip.shape[2]
        rows, columns, _ = strip.stride()
        shape = (IN, IN, high, wide, channels)
        tiles = self._reused("tiles", *shape)
        tiles.copy_(strip.as_strided(shape, (rows, columns, OUT * rows, OUT * columns, 1)))
        places = self._reused("places", IN * IN, high * wide, channels)
        torch.mm(self.to_places, tiles.view(IN * IN, -1), out=places.flatten(1))
        return places

    def _reused(self, name, *shape):
        """Memory of a shape, the same for each strip; where it was new, the heap would come to consist of gaps."""
        size = math.prod(shape)
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory[name] = self.weight.new_empty(size)
        return self._memory[name][:size].view(shape)


def _tiles(length):
    return -(-length // OUT)


def _copy_tiles(out, tiles):
    """Put tiles (4, 4, high, wide, C) side by side into out (rows, W, C), as far as it goes."""
    rows, width, channels = out.shape
    high, wide = rows // OUT, width // OUT
    tiles = tiles.permute(2, 0, 3, 1, 4)
    row, column, _ = out.stride()
    whole = out.as_strided((high, OUT, wide, OUT, channels), (OUT * row, row, OUT * column, column, 1))
    whole.copy_(tiles[:high, :, :wide])
    if width % OUT:
        rest = tiles[:, :, -1, : width % OUT].flatten(0, 1)
        out[:, OUT * wide :] = rest[:rows]
    if rows % OUT:
        rest = tiles[-1, : rows % OUT].flatten(1, 2)
        out[OUT * high :] = rest[:, :width]


@lru_cache
def _transforms(dtype, device):
    """Matrices that make places of an input tile (36, 36), output tiles of places (16, 36), places of weights (36, 9).

    The construction of Cook and Toom: polynomials are multiplied by their
    values at POINTS and at infinity; the convolution is the transpose of that.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)
    powers = points[:, None] ** torch.arange(OUT)
    last = torch.zeros(1, OUT, dtype=torch.float64)
    last[0, -1] = 1
    to_tiles = torch.cat([powers, last]).t()
    others = [[q for q in POINTS if q != p] for p in POINTS]
    scale = [math.prod(p - q for q in rest) for p, rest in zip(POINTS, others, strict=True)]
    of_weights = torch.cat([powers[:, :3] / torch.tensor(scale, dtype=torch.float64)[:, None], last[:, 1:]])
    to_places = torch.stack([_polynomial(roots) for roots in (*others, POINTS)])
    return tuple(torch.kron(m, m).to(device, dtype) for m in (to_places, to_tiles, of_weights))


def _polynomial(roots):
    """Coefficients, lowest first, of the polynomial with these roots, padded to 6."""
    coefficients = torch.zeros(IN, dtype=torch.float64)
    coefficients[0] = 1
    for root in roots:
        coefficients = coefficients.roll(1) - root * coefficients
    return coefficients
