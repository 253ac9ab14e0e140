"""The power spectrum of a blurry image: a kernel has to explain that as well.

The power of an image falls smoothly with frequency, so what is not smooth in
that of y is the kernel's. This knows nothing of edges, which the free energy
and the kernel search live by, and holds for grass and tissue as for houses. It
cannot tell a kernel from one turned by 180 degrees, nor from others of the same
magnitudes. Goldstein and Fattal, "Blur-kernel estimation from spectral
irregularities", ECCV 2012, find kernels so; here they are only judged.
"""

import copy

import torch

from selfdeblur.classical.linear import taper

# Harmonics of the direction in the logarithm of the sharp image's power, each with the logarithm of the frequency.
HARMONICS = (2, 4)

# Frequencies below so many cycles over the image are left out: there the taper and single objects decide.
LOWEST = 4

# With fewer frequencies nothing is said.
FEWEST = 200

# The deviation of rounding to 8 bits: no image has less noise.
ROUNDING = 1.1e-3

# The power of a photograph at one frequency may be many times what is usual there, where edges are parallel: such have
# the weight that Student's distribution with this many degrees of freedom gives them, whose unit is two.
DEGREES = 4

# Steps of scoring for the power of the sharp image, no longer than 1; the information of a frequency, of which one that
# is exponential has 1; the ridge as a share of the diagonal.
STEPS, INFORMATION, RIDGE = 12, 0.6, 1e-3

# Numbers that are worked on at a time.
AT_A_TIME = 1 << 22

# Steps by which `shortfall` moves a kernel, and what it adds to the kernel first, as a share of its largest entry.
FITTING_STEPS, ADDED = 40, 1e-3


class Spectrum:
    """The power spectrum of an image y (H, W), with white noise of a standard deviation.

    Its power at frequency f is modelled as ``|K(f)|^2 S(f) + noise^2``, where the logarithm of S is a quadratic in
    that of the frequency plus HARMONICS of the direction. Power of one frequency is spread around that like an
    exponential variable, see Whittle's likelihood, but for heavier tails.

    Attributes
    ----------
    power : tensor (n,)
        Power at the frequencies that are used.
    enough : bool
        Whether these are enough to ask anything.
    """

    def __init__(self, y, noise):
        self.shape = tuple(y.shape)
        window = taper(y)
        power = torch.fft.rfft2((y - (y * window).sum() / window.sum()) * window).abs().square() / window.square().sum()
        down = torch.fft.fftfreq(self.shape[0], dtype=y.dtype, device=y.device)[:, None].expand(power.shape)
        right = torch.fft.rfftfreq(self.shape[1], dtype=y.dtype, device=y.device).expand(power.shape)
        frequency = torch.hypot(down, right)
        # At the axes the borders of windows and pictures are seen.
        self.used = (frequency > LOWEST / min(self.shape)) & (down != 0) & (right != 0)
        self.power = power[self.used].clamp(min=1e-12)
        frequency, angle = frequency[self.used].log(), torch.atan2(down, right)[self.used]
        frequency = (frequency - frequency.mean()) / frequency.std()
        waves = [wave(n * angle) for n in HARMONICS for wave in (torch.cos, torch.sin)]
        terms = [torch.ones_like(frequency), frequency, frequency.square()]
        self.terms = torch.stack(terms + [wave * factor for wave in waves for factor in terms[:2]])
        # Products (n, m) of each two terms, and where in a matrix of all terms these belong.
        pairs = torch.triu_indices(len(self.terms), len(self.terms))
        self.products = torch.stack([self.terms[i] * self.terms[j] for i, j in pairs.T.tolist()], 1)
        places = torch.zeros(len(self.terms), len(self.terms), dtype=torch.long)
        places[pairs[0], pairs[1]] = places[pairs[1], pairs[0]] = torch.arange(pairs.shape[1])
        self.places = places.to(y.device)
        self.noise = max(noise, ROUNDING) ** 2
        self.enough = len(self.power) >= FEWEST

    def misfits(self, kernels):
        """How badly kernels (n, h, w) explain the spectrum, lower is better: means over frequencies (n,), in nats."""
        at_a_time = max(AT_A_TIME // self.terms.numel(), 1)
        return torch.cat([self._misfits(some) for some in kernels.split(at_a_time)])

    def at_some_frequencies(self, most):
        """The same with at most so many frequencies, evenly taken: a little less sure, and faster."""
        every = -(-len(self.power) // most)
        if every == 1:
            return self
        some = copy.copy(self)
        places = self.used.nonzero()[::every]
        some.used = torch.zeros_like(self.used)
        some.used[places[:, 0], places[:, 1]] = True
        some.power, some.products = self.power[::every].contiguous(), self.products[::every].contiguous()
        some.terms = self.terms[:, ::every].contiguous()
        return some

    def shortfall(self, kernel):
        """How much less misfit a kernel of the same size (h, w) has that was moved towards the spectrum alone, nats.

        Such a kernel is none to deblur with; but where it comes much closer to the spectrum, the kernel that it came
        from is wrong. What comes of fitting it to noise, half a nat for each entry, is taken off.
        """
        kernel = kernel.detach().to(self.terms)
        gain = self._gain(kernel[None])
        terms = self._sharp_power(gain)
        of_kernel = self._of_model(gain, terms)
        roots = (kernel + ADDED * kernel.max()).sqrt().requires_grad_()
        terms.requires_grad_()
        search = torch.optim.LBFGS([roots, terms], max_iter=FITTING_STEPS, line_search_fn="strong_wolfe")

        def misfit():
            moved = roots.square() / roots.square().sum()
            return self._of_model(self._gain(moved[None]), terms)[0]

        def closure():
            search.zero_grad()
            value = misfit()
            value.backward()
            return value

        with torch.enable_grad():
            search.step(closure)
        with torch.no_grad():
            return float(of_kernel - misfit()) - kernel.numel() / (2 * len(self.power))

    def _gain(self, kernels):
        return torch.fft.rfft2(kernels, s=self.shape)[:, self.used].abs().square()

    def _misfits(self, kernels):
        gain = self._gain(kernels.to(self.terms))
        return self._of_model(gain, self._sharp_power(gain))

    def _sharp_power(self, gain):
        """The coefficients (n, terms) of the logarithm of S under which y is most likely, by Fisher's scoring."""
        coefficients = gain.new_zeros(len(gain), len(self.terms))
        coefficients[:, 0] = (self.power / (gain + 0.02)).median(1).values.log()
        for _ in range(STEPS):
            sharp = gain * (coefficients @ self.terms).exp()
            model = sharp + self.noise
            ratio, share = self.power / model, sharp / model
            slope = share * ((DEGREES + 2) / 4 * ratio / (1 + ratio / 2) - 1)
            matrix = (share.square() @ self.products)[:, self.places]
            ridge = RIDGE * matrix.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
            matrix = INFORMATION * matrix + ridge[:, None, None] * torch.eye(len(self.terms)).to(matrix)
            step = torch.linalg.solve_ex(matrix, (slope @ self.terms.T)[..., None]).result[..., 0]
            coefficients = coefficients + step / step.abs().amax(1, keepdim=True).clamp(min=1)
        return coefficients

    def _of_model(self, gain, coefficients):
        model = gain * (coefficients @ self.terms).exp() + self.noise
        surprise = model.log() + (DEGREES + 2) / 2 * torch.log1p(self.power / model / 2)
        return surprise.mean(1) - self.power.log().mean()
