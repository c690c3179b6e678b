"""worthit: is a frontier LLM technique worth it for your model, workload, hardware and data?"""
