"""The image wing of the ops: windows, convolution, pooling and resizing over 1 to 3 spatial axes."""
