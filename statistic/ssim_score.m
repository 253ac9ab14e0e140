function value = ssim_score(image, truth, downsample)
% SSIM_SCORE  Structural similarity of Wang et al. 2004, mean over the image.
%   value = ssim_score(image, truth, downsample): H x W on the scale 0..255.
%   11 x 11 Gaussian window of sigma 1.5, K = 0.01 and 0.03. With downsample,
%   both images are first averaged over f x f pixels (symmetric border) and
%   each f-th pixel is kept, f = round(min(H, W) / 256): the published figures
%   have this.
factor = 1;
if downsample
    factor = max(1, round(min(size(truth)) / 256));
end
if factor > 1
    image = reduced(image, factor);
    truth = reduced(truth, factor);
end
taps = exp(-(-5:5) .^ 2 / (2 * 1.5 ^ 2));
taps = taps / sum(taps);
c1 = (0.01 * 255) ^ 2;
c2 = (0.03 * 255) ^ 2;
mean_a = conv2(taps, taps, image, 'valid');
mean_b = conv2(taps, taps, truth, 'valid');
squares = mean_a .^ 2 + mean_b .^ 2;
products = mean_a .* mean_b;
spread = conv2(taps, taps, image .^ 2 + truth .^ 2, 'valid') - squares;
joint = conv2(taps, taps, image .* truth, 'valid') - products;
map = ((2 * products + c1) .* (2 * joint + c2)) ./ ((squares + c1) .* (spread + c2));
value = mean(map(:));
end

function image = reduced(image, factor)
% An even window reaches one pixel further down and right than up and left.
before = floor((factor + 1) / 2) - 1;
after = factor - 1 - before;
[h, w] = size(image);
image = image([before:-1:1, 1:h, h:-1:h - after + 1], [before:-1:1, 1:w, w:-1:w - after + 1]);
taps = ones(1, factor) / factor;
image = conv2(taps, taps, image, 'valid');
image = image(1:factor:end, 1:factor:end);
end
