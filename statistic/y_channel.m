function y = y_channel(image)
% Y_CHANNEL  Y of MATLAB's rgb2ycbcr for a colour image.
%   y = y_channel(image): image is H x W x 3 on the scale 0..255, y is H x W
%   within 16..235 and not rounded.
y = (65.481 * image(:, :, 1) + 128.553 * image(:, :, 2) + 24.966 * image(:, :, 3)) / 255 + 16;
end
