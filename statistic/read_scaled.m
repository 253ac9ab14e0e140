function image = read_scaled(file)
% READ_SCALED  Read an image file as double on the scale 0..255.
%   image = read_scaled(file) is H x W or H x W x 3. Files of 8 and of 16 bits
%   are read, palettes are expanded and alpha is dropped.
[image, map] = imread(file);
if ~isempty(map)
    image = 255 * ind2rgb(image, map);
    image = round(image);
elseif islogical(image)
    image = 255 * double(image);
elseif isinteger(image)
    image = double(image) * (255 / double(intmax(class(image))));
else
    image = 255 * double(image);
end
switch size(image, 3)
    case 2
        image = image(:, :, 1);
    case 4
        image = image(:, :, 1:3);
end
end
