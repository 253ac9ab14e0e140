function value = psnr_score(image, truth)
% PSNR_SCORE  Peak signal-to-noise ratio in dB for the peak 255.
value = 10 * log10(255 ^ 2 / mean((image(:) - truth(:)) .^ 2));
end
