function write_scores(rows, file)
% WRITE_SCORES  Write the rows of score_results as CSV, what is unknown empty.
out = fopen(file, 'w');
if out < 0
    error('%s: cannot be written', file);
end
fprintf(out, 'image,status,psnr,ssim,ssim_plain,error_ratio,ssd_ratio,shift_y,shift_x,on_rim,note\n');
for k = 1:numel(rows)
    row = rows(k);
    rim = '';
    if ~isnan(row.psnr) && row.on_rim
        rim = 'yes';
    elseif ~isnan(row.psnr)
        rim = 'no';
    end
    % Joined by hand: fprintf leaves out empty arguments.
    fprintf(out, '%s\n', [row.image ',' row.status number(row.psnr) number(row.ssim) number(row.ssim_plain) ...
        number(row.error_ratio) number(row.ssd_ratio) number(row.shift_y) number(row.shift_x) ...
        ',' rim ',"' strrep(row.note, '"', '""') '"']);
end
fclose(out);
end

function text = number(value)
text = ',';
if ~isnan(value)
    text = sprintf(',%.8f', value);
end
end
