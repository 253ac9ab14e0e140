function [moved, inner, shift_y, shift_x, on_rim] = align_result(image, truth, maxshift)
% ALIGN_RESULT  Move a result onto the sharp image.
%   [moved, inner, shift_y, shift_x, on_rim] = align_result(image, truth, maxshift)
%   cuts 15 pixels off each side of truth and finds, among the shifts from
%   -maxshift to maxshift in quarter pixels both ways (bilinear), the one with
%   the least sum of squared differences; of equal ones the first, by rows.
%   image and truth are H x W on the scale 0..255, maxshift is 0 to 15.
%   moved(i, j) is image at (15 + i + shift_y, 15 + j + shift_x), inner the cut
%   truth. on_rim tells that the shift is the largest tried in some direction.
%
%   The sums come from a quadratic form in the four bilinear weights: products
%   of neighbouring pixels by running sums, the correlation with truth by FFT.
%   Shifts whose sums are equal but for rounding are compared on the pixels, so
%   the answer is that of trying every shift.
border = 15;
if ~isequal(size(image), size(truth))
    error('the sizes differ: %d x %d against %d x %d of the sharp image', ...
        size(image, 2), size(image, 1), size(truth, 2), size(truth, 1));
end
if maxshift ~= round(maxshift) || maxshift < 0 || maxshift > border
    error('maxshift is %g, it has to be a whole number from 0 to %d', maxshift, border);
end
inner = truth(border + 1:end - border, border + 1:end - border);
[h, w] = size(inner);
if h < 1 || w < 1
    error('%d x %d pixels are too few for a border of %d', size(truth, 2), size(truth, 1), border);
end
cut = border - maxshift;
reach = image(cut + 1:end - cut, cut + 1:end - cut);
% One more row and column, repeated; they are met with weight zero only.
reach = reach([1:end, end], [1:end, end]);
n = 2 * maxshift + 2;

middle = round(mean(inner(:)));
a = inner - middle;
b = reach - middle;
p = 2 ^ nextpow2(size(b, 1));
q = 2 ^ nextpow2(size(b, 2));
cross = real(ifft2(fft2(b, p, q) .* conj(fft2(a, p, q))));
cross = cross([1:n - 1, n - 1], [1:n - 1, n - 1]);
square = windows(b .^ 2, h, w, n);
below = windows(b(1:end - 1, :) .* b(2:end, :), h, w, n);
beside = windows(b(:, 1:end - 1) .* b(:, 2:end), h, w, n);
falling = windows(b(1:end - 1, 1:end - 1) .* b(2:end, 2:end), h, w, n);
rising = windows(b(2:end, 1:end - 1) .* b(1:end - 1, 2:end), h, w, n);
total = sum(a(:) .^ 2);

sums = zeros(4 * (n - 1));
i = 1:n - 1;
j = i + 1;
for py = 0:3
    for px = 0:3
        v = weights(py / 4, px / 4);
        energy = v(1) ^ 2 * square(i, i) + v(2) ^ 2 * square(i, j) ...
            + v(3) ^ 2 * square(j, i) + v(4) ^ 2 * square(j, j) ...
            + 2 * (v(1) * v(3) * below(i, i) + v(2) * v(4) * below(i, j)) ...
            + 2 * (v(1) * v(2) * beside(i, i) + v(3) * v(4) * beside(j, i)) ...
            + 2 * (v(1) * v(4) * falling(i, i) + v(2) * v(3) * rising(i, i));
        match = v(1) * cross(i, i) + v(2) * cross(i, j) + v(3) * cross(j, i) + v(4) * cross(j, j);
        sums(py + 1:4:end, px + 1:4:end) = energy - 2 * match + total;
    end
end
sums = sums(1:8 * maxshift + 1, 1:8 * maxshift + 1);

rounding = 1e-12 * (sum(b(:) .^ 2) + total);
[columns, rows] = find(sums.' <= min(sums(:)) + rounding);
if max(reach(:)) == min(reach(:))
    % A run that failed may leave one grey: every shift is as good.
    rows = 1;
    columns = 1;
end
least = Inf;
for k = 1:numel(rows)
    candidate = shifted(reach, h, w, rows(k) - 1, columns(k) - 1);
    exact = sum((candidate(:) - inner(:)) .^ 2);
    if exact < least
        least = exact;
        moved = candidate;
        row = rows(k);
        column = columns(k);
    end
end
last = 8 * maxshift + 1;
on_rim = maxshift > 0 && (row == 1 || row == last || column == 1 || column == last);
shift_y = (row - 1) / 4 - maxshift;
shift_x = (column - 1) / 4 - maxshift;
end

function v = weights(fy, fx)
v = [(1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx];
end

function moved = shifted(reach, h, w, row, column)
y = floor(row / 4);
x = floor(column / 4);
fy = row / 4 - y;
fx = column / 4 - x;
i = y + 1:y + h;
j = x + 1:x + w;
moved = (1 - fy) * ((1 - fx) * reach(i, j) + fx * reach(i, j + 1)) ...
    + fy * ((1 - fx) * reach(i + 1, j) + fx * reach(i + 1, j + 1));
end

function sums = windows(products, h, w, n)
% Sums over each h x w window; rows and columns that are short are repeated.
total = zeros(size(products) + 1);
total(2:end, 2:end) = cumsum(cumsum(products, 1), 2);
sums = total(h + 1:end, w + 1:end) - total(1:end - h, w + 1:end) ...
    - total(h + 1:end, 1:end - w) + total(1:end - h, 1:end - w);
[p, q] = size(sums);
sums = sums(min(1:n, p), min(1:n, q));
end
