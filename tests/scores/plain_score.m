function plain_score(folder, names, maxshifts, file)
% PLAIN_SCORE  The protocol written out the long way, to check the fast scripts.
%   Each shift is tried on the pixels with interp2, the SSIM window is a full
%   two-dimensional filter, the box filter of the downsampling is a loop.
out = fopen(file, 'w');
fprintf(out, 'name,psnr,ssim,ssim_plain,norm,shift_y,shift_x\n');
for k = 1:numel(names)
    x = whole(imread(fullfile(folder, 'results', [names{k} '.png'])));
    t = whole(imread(fullfile(folder, 'truth', [names{k} '.png'])));
    m = maxshifts(k);
    t = t(16:end - 15, 16:end - 15);
    [h, w] = size(t);
    [column, row] = meshgrid(1:size(x, 2), 1:size(x, 1));
    [c, r] = meshgrid(16:15 + w, 16:15 + h);
    best = Inf;
    for dy = -m:0.25:m
        for dx = -m:0.25:m
            moved = interp2(column, row, x, c + dx, r + dy);
            total = sum((moved(:) - t(:)) .^ 2);
            if total < best
                best = total;
                kept = moved;
                shift = [dy, dx];
            end
        end
    end
    f = max(1, round(min(h, w) / 256));
    fprintf(out, '%s,%.10f,%.10f,%.10f,%.10f,%g,%g\n', names{k}, 10 * log10(255 ^ 2 / (best / (h * w))), ...
        similarity(boxed(kept, f), boxed(t, f)), similarity(kept, t), norm(kept - t), shift(1), shift(2));
end
fclose(out);
end

function y = whole(image)
peak = double(intmax(class(image)));
image = double(image) / peak * 255;
if size(image, 3) == 3
    image = image / 255;
    y = 16 + 65.481 * image(:, :, 1) + 128.553 * image(:, :, 2) + 24.966 * image(:, :, 3);
else
    y = image;
end
end

function small = boxed(image, f)
if f == 1
    small = image;
    return
end
[h, w] = size(image);
first = -(floor((f + 1) / 2) - 1);
small = zeros(ceil(h / f), ceil(w / f));
for a = first:first + f - 1
    for b = first:first + f - 1
        r = (1:f:h) + a;
        c = (1:f:w) + b;
        r(r < 1) = 1 - r(r < 1);
        c(c < 1) = 1 - c(c < 1);
        r(r > h) = 2 * h + 1 - r(r > h);
        c(c > w) = 2 * w + 1 - c(c > w);
        small = small + image(r, c) / f ^ 2;
    end
end
end

function s = similarity(a, b)
[x, y] = meshgrid(-5:5);
window = exp(-(x .^ 2 + y .^ 2) / 4.5);
window = window / sum(window(:));
ma = filter2(window, a, 'valid');
mb = filter2(window, b, 'valid');
va = filter2(window, a .* a, 'valid') - ma .* ma;
vb = filter2(window, b .* b, 'valid') - mb .* mb;
vab = filter2(window, a .* b, 'valid') - ma .* mb;
c1 = 6.5025;
c2 = 58.5225;
s = mean(mean(((2 * ma .* mb + c1) .* (2 * vab + c2)) ./ ((ma .^ 2 + mb .^ 2 + c1) .* (va + vb + c2))));
end
