% Score results on Levin's 32 images. Runs in MATLAB and GNU Octave, no toolbox
% or package needed:
%
%   octave-cli statistic/statistic_Levin.m
%
% Change any of the five variables below, or set it before the call:
%
%   octave-cli --eval "addpath statistic; maxshift = 5; statistic_Levin"

here = fileparts(mfilename('fullpath'));
addpath(here);
root = fileparts(here);

if ~exist('results', 'var'),      results = fullfile(root, 'results', 'levin');               end
if ~exist('ground_truth', 'var'), ground_truth = fullfile(root, 'datasets', 'levin', 'gt');     end
if ~exist('true_kernel', 'var'),  true_kernel = fullfile(root, 'datasets', 'levin', 'groundk'); end
if ~exist('maxshift', 'var'),     maxshift = 10;                                                end
if ~exist('csv_file', 'var'),     csv_file = fullfile(results, 'scores.csv');                   end

names = {};
truths = {};
image_of = [];
kernel_of = [];
for i = 1:4
    for k = 1:8
        names{end + 1} = sprintf('im%d_kernel%d_img', i, k);
        truths{end + 1} = sprintf('im%d', i);
        image_of(end + 1) = i;
        kernel_of(end + 1) = k;
    end
end

rows = score_results(names, truths, results, ground_truth, true_kernel, maxshift);
if ~isempty(csv_file)
    write_scores(rows, csv_file);
end

print_averages('all', rows);
for i = 1:4
    print_averages(sprintf('im%d', i), rows(image_of == i));
end
for k = 1:8
    print_averages(sprintf('kernel%d', k), rows(kernel_of == k));
end
print_remarks(rows, maxshift);

% Left standing, they would be taken for the user's choice in the next call.
clear results ground_truth true_kernel maxshift csv_file
