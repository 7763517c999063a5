# Takes torch and what of CUDA comes with it out of a lock, for machines without a GPU; nvidia-ml-py is small and MLflow's.
/^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/{
/^nvidia-ml-py==/!{
:lines
/\\$/{
N
b lines
}
d
}
}
