function print_averages(title, rows)
% PRINT_AVERAGES  Print one line with the means of those rows that have a score.
scored = rows(~isnan([rows.psnr]));
if isempty(scored)
    fprintf('%-12s %7s\n', title, sprintf('0/%d', numel(rows)));
    return
end
fprintf('%-12s %7s  PSNR %.6f  SSIM %.6f  plain SSIM %.6f', title, ...
    sprintf('%d/%d', numel(scored), numel(rows)), mean([scored.psnr]), mean([scored.ssim]), mean([scored.ssim_plain]));
known = scored(~isnan([scored.error_ratio]));
if ~isempty(known)
    fprintf('  error ratio %.6f (squares %.6f)', mean([known.error_ratio]), mean([known.ssd_ratio]));
    if numel(known) < numel(scored)
        fprintf(' over %d', numel(known));
    end
end
fprintf('\n');
end
