function print_remarks(rows, maxshift)
% PRINT_REMARKS  Print what a reader of the averages has to know.
status = {rows.status};
scored = ~isnan([rows.psnr]);
known = rows(~isnan([rows.error_ratio]));
if ~isempty(known)
    fprintf('error ratio at most 1.5: %.1f%%, 2: %.1f%%, 3: %.1f%% of %d images\n', ...
        100 * mean([known.error_ratio] <= 1.5), 100 * mean([known.error_ratio] <= 2), ...
        100 * mean([known.error_ratio] <= 3), numel(known));
    fprintf('the same by squares: 1.5: %.1f%%, 2: %.1f%%, 3: %.1f%%\n', ...
        100 * mean([known.ssd_ratio] <= 1.5), 100 * mean([known.ssd_ratio] <= 2), ...
        100 * mean([known.ssd_ratio] <= 3));
end
if ~all(scored)
    fprintf('warning: PARTIAL: only %d of %d images have a score\n', sum(scored), numel(rows));
end
listed('no result for', rows(strcmp(status, 'missing')));
listed('unfinished runs, scored as they are:', rows(strcmp(status, 'unfinished')));
failed = rows(strcmp(status, 'failed'));
for k = 1:numel(failed)
    fprintf('warning: %s not scored: %s\n', failed(k).image, failed(k).note);
end
listed(sprintf('best shift on the rim of the search, %d pixels:', maxshift), rows(scored & [rows.on_rim]));
end

function listed(text, rows)
if ~isempty(rows)
    fprintf('warning: %s%s\n', text, sprintf(' %s', rows.image));
end
end
