% Score results on the 100 uniformly blurred images of Lai et al. Runs in MATLAB
% and GNU Octave, no toolbox or package needed:
%
%   octave-cli statistic/statistic_Lai.m
%
% Change any of the five variables below, or set it before the call:
%
%   octave-cli --eval "addpath statistic; maxshift = 5; statistic_Lai"

here = fileparts(mfilename('fullpath'));
addpath(here);
root = fileparts(here);

if ~exist('results', 'var'),      results = fullfile(root, 'results', 'lai', 'uniform');            end
if ~exist('ground_truth', 'var'), ground_truth = fullfile(root, 'datasets', 'lai', 'ground_truth'); end
if ~exist('true_kernel', 'var'),  true_kernel = '';                                                  end
if ~exist('maxshift', 'var'),     maxshift = 10;                                                     end
if ~exist('csv_file', 'var'),     csv_file = fullfile(results, 'scores.csv');                        end

categories = {'manmade', 'natural', 'people', 'saturated', 'text'};
names = {};
truths = {};
category_of = [];
kernel_of = [];
for c = 1:5
    for i = 1:5
        for k = 1:4
            truths{end + 1} = sprintf('%s_%02d', categories{c}, i);
            names{end + 1} = sprintf('%s_kernel_%02d', truths{end}, k);
            category_of(end + 1) = c;
            kernel_of(end + 1) = k;
        end
    end
end

rows = score_results(names, truths, results, ground_truth, true_kernel, maxshift);
if ~isempty(csv_file)
    write_scores(rows, csv_file);
end

print_averages('all', rows);
for c = 1:5
    print_averages(categories{c}, rows(category_of == c));
end
for k = 1:4
    print_averages(sprintf('kernel_%02d', k), rows(kernel_of == k));
end
print_remarks(rows, maxshift);

% Left standing, they would be taken for the user's choice in the next call.
clear results ground_truth true_kernel maxshift csv_file
