# Stands for the official base image where no registry is at hand: a file system of Debian's packages.
FROM scratch
ADD root.tar /
