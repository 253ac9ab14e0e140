function rows = score_results(names, truths, results, ground_truth, true_kernel, maxshift)
% SCORE_RESULTS  Score one result for each name.
%   rows = score_results(names, truths, results, ground_truth, true_kernel, maxshift)
%   compares results/NAME_x.png, or else results/NAME.png, with
%   ground_truth/TRUTH.png; the error ratios are against true_kernel/NAME_x.png
%   or NAME.png, if there is such a file. rows is a struct array with the
%   fields image, status (ok, unfinished, missing, failed), psnr, ssim,
%   ssim_plain, error_ratio, ssd_ratio, shift_y, shift_x, on_rim, note; what is
%   unknown is NaN. error_ratio is the published one, a ratio of matrix
%   2-norms; ssd_ratio is that of Levin et al. 2009, a ratio of sums of squares.
%
%   A colour truth is compared on MATLAB's Y; a grey result is then taken to be
%   that Y already.
if ~exist(results, 'dir')
    error('%s: no such folder (variable results)', results);
end
if ~exist(ground_truth, 'dir')
    error('%s: no such folder (variable ground_truth)', ground_truth);
end
empty = struct('image', '', 'status', 'missing', 'psnr', NaN, 'ssim', NaN, 'ssim_plain', NaN, ...
    'error_ratio', NaN, 'ssd_ratio', NaN, 'shift_y', NaN, 'shift_x', NaN, 'on_rim', false, 'note', '');
rows = repmat(empty, 1, numel(names));
found = 0;
for k = 1:numel(names)
    rows(k).image = names{k};
    file = result_file(results, names{k});
    if isempty(file)
        continue
    end
    found = found + 1;
    try
        rows(k) = one_row(rows(k), file, names{k}, truths{k}, results, ground_truth, true_kernel, maxshift);
    catch failure
        rows(k).status = 'failed';
        rows(k).note = sprintf('%s: %s', file, failure.message);
    end
end
if found == 0
    error('%s: holds no result of this benchmark (NAME_x.png or NAME.png)', results);
end
end

function row = one_row(row, file, name, truth_name, results, ground_truth, true_kernel, maxshift)
truth_file = fullfile(ground_truth, [truth_name '.png']);
if ~exist(truth_file, 'file')
    error('the sharp image %s is missing', truth_file);
end
truth = read_scaled(truth_file);
colour = size(truth, 3) == 3;
if colour
    truth = y_channel(truth);
end
[moved, inner, row.shift_y, row.shift_x, row.on_rim] = ...
    align_result(comparable(read_scaled(file), colour), truth, maxshift);
row.psnr = psnr_score(moved, inner);
row.ssim = ssim_score(moved, inner, true);
row.ssim_plain = ssim_score(moved, inner, false);
reference_file = '';
if ~isempty(true_kernel)
    reference_file = result_file(true_kernel, name);
end
if ~isempty(reference_file)
    reference = align_result(comparable(read_scaled(reference_file), colour), truth, maxshift);
    row.error_ratio = norm(moved - inner) / norm(reference - inner);
    row.ssd_ratio = sum((moved(:) - inner(:)) .^ 2) / sum((reference(:) - inner(:)) .^ 2);
end
row.status = 'ok';
record = fullfile(results, [name '.json']);
if exist(record, 'file') && isempty(regexp(fileread(record), '"finished"\s*:\s*true', 'once'))
    row.status = 'unfinished';
end
end

function image = comparable(image, colour)
if size(image, 3) == 3
    if colour
        image = y_channel(image);
    elseif isequal(image(:, :, 1), image(:, :, 2), image(:, :, 3))
        image = image(:, :, 1);
    else
        error('a colour image, but the sharp image is grey');
    end
end
end

function file = result_file(folder, name)
file = fullfile(folder, [name '_x.png']);
if ~exist(file, 'file')
    file = fullfile(folder, [name '.png']);
    if ~exist(file, 'file')
        file = '';
    end
end
end
