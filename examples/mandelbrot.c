/* The Mandelbrot set, drawn into /out/image.pgm: freehold job run examples/mandelbrot.c --arg 640 --arg 480
 *
 * Arguments: width, height, iterations (640 480 200). Only +, -, * and comparisons of doubles, which WebAssembly
 * defines to the bit: every machine draws the same image.
 */
#include <stdio.h>
#include <stdlib.h>

static int count(double x, double y, int most) {
    double real = 0, imaginary = 0;
    for (int n = 0; n < most; n++) {
        double square = real * real, other = imaginary * imaginary;
        if (square + other > 4) return n;
        imaginary = 2 * real * imaginary + y;
        real = square - other + x;
    }
    return most;
}

static int argument(int count, char **values, int place, int otherwise) {
    int value = count > place ? atoi(values[place]) : otherwise;
    if (value < 1 || value > 16384) {
        fprintf(stderr, "usage: mandelbrot [WIDTH [HEIGHT [ITERATIONS]]]\n");
        exit(2);
    }
    return value;
}

int main(int argc, char **argv) {
    int width = argument(argc, argv, 1, 640), height = argument(argc, argv, 2, 480);
    int most = argument(argc, argv, 3, 200);
    FILE *image = fopen("/out/image.pgm", "wb");
    unsigned char *row = malloc(width);
    if (!image || !row) {
        perror("/out/image.pgm");
        return 1;
    }
    fprintf(image, "P5\n%d %d\n255\n", width, height);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            int n = count(3.0 * x / width - 2.25, 2.4 * y / height - 1.2, most);
            row[x] = n == most ? 0 : 255 - n * 255 / most;
        }
        fwrite(row, 1, width, image);
    }
    if (fclose(image)) {
        perror("/out/image.pgm");
        return 1;
    }
    printf("drew %d x %d\n", width, height);
    return 0;
}
